# stand-in: nothing imports it
