"""Training on Ray: workers, sessions, jobs, the preflight and the watch; also the doctor."""
