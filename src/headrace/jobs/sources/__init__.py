"""Where rows come from: each kind of source cuts its input into shards, and reads one."""
