"""The stages of a run, one a file: inputs are directories, the output is one directory."""
