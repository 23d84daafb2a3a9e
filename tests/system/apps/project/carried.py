WORD = "carried along"
