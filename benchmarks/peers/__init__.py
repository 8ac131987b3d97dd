"""What people would run instead: one module each, with `run`, `CANDIDATES` and what each keeps."""
