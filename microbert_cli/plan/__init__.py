"""What a recipe will cost before it runs: work is counted, and timed on this machine or priced for another."""
