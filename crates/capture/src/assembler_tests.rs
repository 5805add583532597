//! Tests of the assembler, with records made by hand.
