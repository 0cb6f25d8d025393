"""What a recipe will cost, before it runs: counted work, priced by a rehearsal on this machine or by a machine on paper."""
