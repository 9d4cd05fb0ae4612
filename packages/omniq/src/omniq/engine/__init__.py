"""The worker: claims tasks ahead of its free slots, runs them, settles them in batches, keeps their leases."""
