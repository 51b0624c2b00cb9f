"""How rows are judged: ranks, answers, clicks, and how sure a difference is."""
