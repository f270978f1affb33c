# Measured loops for hosts where an emulator runs ring 0, one whole instruction after the other: see exits.inc.
        .set    FENCED, 0
        .include "exits.inc"
