// `criu swrk FD`: one client, one socket, requests until the work is done.
// What is not built is answered as a failure with a sentence, not by silence.
import { criu_req_type } from '../../oci-spec/images/messages.js';
import { LogFile } from '../core-session.js';
import { StasisError } from '../errors/index.js';
import { checkHost } from '../host-check.js';
import { dump } from './dump.js';
import { BadRequest, directoriesOf, type RpcDirectories } from './options.js';
import { RpcSocket, type Notify, type RpcOptions, type RpcRequest, type RpcResponse } from './packets.js';
import { restore } from './restore.js';

const ESRCH = 3;
const EBADRQC = 56;
/** Clients read answers into 8 KiB. */
const kMessageBytes = 1023;
const kFailedPid = -1;

/** The version of CRIU whose protocol this is. */
export const criuVersion = { major: 4, minor: 2 } as const;

/** Returns the exit status: clients take another one than 0 for a failure of the call. */
export async function serve(ownFd: number): Promise<number> {
  const socket = new RpcSocket(ownFd);
  for (;;) {
    const request = socket.receive();
    if (request === undefined) return 1;
    const response = await answer(request, socket);
    socket.send(response);
    if (response.success !== true) return 1;
    if (request.keep_open !== true) return 0;
  }
}

async function answer(request: RpcRequest, socket: RpcSocket): Promise<RpcResponse> {
  const { type } = request;
  switch (type) {
    case criu_req_type.VERSION:
      return { type, success: true, version: { major_number: criuVersion.major, minor_number: criuVersion.minor } };
    case criu_req_type.FEATURE_CHECK:
      return { type, success: true, features: { mem_track: true, lazy_pages: false, pidfd_store: false } };
    case criu_req_type.CHECK:
      return check();
    case criu_req_type.DUMP:
      return await work(request, socket, async (options, directories, notify) => {
        await dump(options, directories, notify);
        return { dump: { restored: false } };
      });
    case criu_req_type.RESTORE:
      return await work(request, socket, async (options, directories, notify) => ({
        restore: { pid: await restore(options, directories, notify) },
      }));
    case criu_req_type.PRE_DUMP:
    case criu_req_type.SINGLE_PRE_DUMP:
      return await work(request, socket, async (options, directories, notify) => {
        await dump(options, directories, notify, { preDump: true });
        return {};
      });
    case criu_req_type.PAGE_SERVER:
    case criu_req_type.PAGE_SERVER_CHLD:
      return failure(type, new BadRequest('cannot serve pages over a network: this is not built yet'));
    default:
      return failure(criu_req_type.EMPTY, new BadRequest(`cannot answer a request of type ${type}: it is not built`));
  }
}

type Work = (options: RpcOptions, directories: RpcDirectories, notify: Notify) => Promise<RpcResponse>;

async function work(request: RpcRequest, socket: RpcSocket, act: Work): Promise<RpcResponse> {
  const { type, opts } = request;
  let directories: RpcDirectories | undefined;
  try {
    if (opts === undefined) throw new BadRequest('cannot find the images: the request has no options');
    directories = directoriesOf(opts, socket.clientHostPid);
    // Clients of a dump may do without scripts, those of a restore as well.
    const notify: Notify = (script, about) => opts.notify_scripts === true && socket.notify(script, about);
    return { type, success: true, ...(await act(opts, directories, notify)) };
  } catch (error) {
    const response = failure(type, error);
    if (directories !== undefined) writeToLog(directories, response.cr_errmsg ?? '');
    return response;
  }
}

function failure(type: number, error: unknown): RpcResponse {
  const sentence = error instanceof Error ? error.message : String(error);
  const errno =
    error instanceof BadRequest ? EBADRQC : error instanceof StasisError && error.code === 'TASK_GONE' ? ESRCH : 0;
  return {
    type,
    success: false,
    ...(type === criu_req_type.RESTORE ? { restore: { pid: kFailedPid } } : {}),
    ...(errno === 0 ? {} : { cr_errno: errno }),
    cr_errmsg: Buffer.from(sentence)
      .subarray(0, kMessageBytes)
      .toString('utf8')
      .replace(/\uFFFD+$/, ''),
  };
}

/** Runtimes quote the lines of the log that have this word. */
function writeToLog(directories: RpcDirectories, sentence: string): void {
  try {
    using log = new LogFile(directories.workPath, directories.logName);
    log.write([`Error: ${sentence}`]);
  } catch {
    // The answer has it, too.
  }
}

function check(): RpcResponse {
  const missing = checkHost().find(
    ({ available, required, name }) => required && !available && name !== 'base runtime',
  );
  if (missing === undefined) return { type: criu_req_type.CHECK, success: true };
  return { type: criu_req_type.CHECK, success: false, cr_errmsg: `${missing.name}: ${missing.detail}` };
}
