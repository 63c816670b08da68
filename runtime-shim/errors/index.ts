export { StasisError, type Degradation, type StasisErrorFields, type Subject } from './stasis-error.js';
export { errorCodes, exitStatusOfKind, kindOfCode, type ErrorCode, type ErrorKind } from './codes.js';
export { causeText, errnoCode, errnoText, fileError } from './errno.js';
export { fromNative, type NativeFailure } from './from-native.js';
