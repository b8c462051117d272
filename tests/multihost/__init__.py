"""Two providers and a home site on one machine: namespaces, a network between them, the mesh."""
