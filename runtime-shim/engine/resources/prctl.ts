// Options of prctl(2) and arch_prctl(2) that plans use.
export const prctl = {
  SET_PDEATHSIG: 1,
  SET_DUMPABLE: 4,
  SET_NAME: 15,
  CAPBSET_DROP: 24,
  SET_SECUREBITS: 28,
  SET_TIMERSLACK: 29,
  SET_MM: 35,
  SET_CHILD_SUBREAPER: 36,
  SET_NO_NEW_PRIVS: 38,
  SET_THP_DISABLE: 41,
  CAP_AMBIENT: 47,
  /** Linux 6.15 */
  TIMER_CREATE_RESTORE_IDS: 77,
} as const;

/** Second argument of PR_SET_MM. */
export const kSetMmMap = 14;

export const capAmbient = { RAISE: 2, CLEAR_ALL: 4 } as const;

/** arch_prctl: maps vvar and vdso of this kernel at an address of our choice (Linux 4.9). */
export const kArchMapVdso64 = 0x2003;
