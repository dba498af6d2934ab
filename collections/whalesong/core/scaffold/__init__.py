"""`xlm-scaffold`: a new external model that trains before a line of it is edited."""
