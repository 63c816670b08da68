// What is done with the TCP connections of a container whose other end is not
// in it, as options and an annotation say it.
import { FormatError } from './json.js';

/** fail: refused. established: carried. close: the program gets a closed one. */
export type TcpRule = 'fail' | 'established' | 'close';

/** For managers that pass no options: docker, the kubelet. */
export const kTcpAnnotation = 'org.stasis.tcp';

/** Of the annotations of config.json; undefined: nothing is said. Throws FormatError. */
export function tcpRuleOf(annotations: Readonly<Record<string, string>>): TcpRule | undefined {
  const rule = annotations[kTcpAnnotation];
  if (rule === undefined || rule === 'fail' || rule === 'established' || rule === 'close') return rule;
  throw new FormatError(kTcpAnnotation, `is ${JSON.stringify(rule)}: use established, close or fail`);
}
