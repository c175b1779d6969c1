"""What several towers share."""
