"""Runtimes of TensorFlow's files: SavedModels and TFLite."""
