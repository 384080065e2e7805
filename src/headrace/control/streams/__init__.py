"""Worker processes of streams: their number is kept, and they are replaced one by one."""
