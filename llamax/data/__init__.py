"""Text to packed token rows: host only, numpy in, numpy out."""
