"""The kinds of rows in a table of results: light, since tables are shown without loading anything."""

MAJORITY, LINEAR = "majority", "linear"
TEACHER, TEACHER_INT8 = "teacher", "teacher-int8"
STUDENT, STUDENT_INT8, EXPORT = "student", "student-int8", "export"

# What tables call a linear model, by what its labels are of, and what sentences do.
LINEAR_TEXTS, LINEAR_WORDS = "linear, TF-IDF", "linear, word features"
LINEAR_IN_SENTENCES = {LINEAR_TEXTS: "a linear TF-IDF model", LINEAR_WORDS: "a linear model of word features"}
