"""The kinds of rows in a table of results: light, since tables are shown without loading anything."""

MAJORITY, LINEAR = "majority", "linear"
TEACHER, TEACHER_INT8 = "teacher", "teacher-int8"
STUDENT, STUDENT_INT8, EXPORT = "student", "student-int8", "export"
