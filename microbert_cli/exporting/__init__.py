"""Export directories: ONNX files, their parity with the model, and the model card."""
