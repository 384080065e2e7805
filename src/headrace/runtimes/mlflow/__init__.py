"""Runtime of MLflow folders, by other runtimes or by MLflow. Imports its sibling `tables`."""
