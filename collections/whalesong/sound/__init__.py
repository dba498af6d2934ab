"""What families that make sound share: codecs and their codes, requests, conditions, samples."""
