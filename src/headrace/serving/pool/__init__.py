"""Pool: one process that hosts many models and loads them on demand."""
