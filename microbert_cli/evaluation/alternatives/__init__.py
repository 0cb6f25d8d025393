"""What a user would take instead of a student: a linear model, the teacher's int8 file; and the verdict on the student."""
