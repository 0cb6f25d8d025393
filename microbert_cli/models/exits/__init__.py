"""Models with exits: branches that answer after a layer, so that rows leave where they are sure (FastBERT)."""
