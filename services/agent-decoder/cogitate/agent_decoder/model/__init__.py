"""The model in torch: forward pass over block tables, loading, templates."""
