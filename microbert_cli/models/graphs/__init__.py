"""Changes to ONNX graphs: how tables of embeddings are stored, and what the top layer computes."""
