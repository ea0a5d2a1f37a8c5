"""What surrounds training: the body of a worker, the dry run, the doctor, and the inspection of what is stored."""
