"""A certificate authority for development: `authority` signs, `folder` keeps what it signed."""
