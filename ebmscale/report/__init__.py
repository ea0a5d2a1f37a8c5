"""The pages and their pictures: of a run, and of a comparison."""
