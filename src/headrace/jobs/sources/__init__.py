"""Sources of a job: each kind splits its input into shards and reads them."""
