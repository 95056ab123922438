"""Running the processes: settings, Ray Serve deployments, bare processes, the local stack. The only importer of ray."""
