"""Edge: what the router must not forget, in files that survive it."""
