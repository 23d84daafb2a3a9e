WORD = "from the shelf"
