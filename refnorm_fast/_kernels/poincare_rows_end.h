/* Ends what poincare_rows.h began. */
#undef LOAD
#undef STORE
#undef EACH
#undef EACH_PAIR
#undef PUT
#undef SAFE_GAP
