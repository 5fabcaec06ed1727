"""Ray, processes, devices and terminals: the machine below a job."""
