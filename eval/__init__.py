"""What an encoder is worth: embeddings, probes, metrics and the report."""
