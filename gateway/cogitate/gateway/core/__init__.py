"""What a request may be: values in, violations out; nothing here knows of gRPC or of time."""
