"""What has to be shared, to survive or to know the answer is counted here, for every gateway."""
