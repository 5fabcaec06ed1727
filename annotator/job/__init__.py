"""A distributed, resumable job: from a source of photos to a label folder."""
