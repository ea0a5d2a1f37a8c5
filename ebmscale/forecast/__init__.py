"""What a run will need, before it starts: the dry run and the plan."""
