"""Ray, processes, devices and terminals: the layer below a job."""
