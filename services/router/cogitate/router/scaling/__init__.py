"""What a pool of endpoints needs, and telling it to who adds and removes them."""
