"""What a run is asked to do: keys, their values and origins, tasks, and names of the catalogue.."""
