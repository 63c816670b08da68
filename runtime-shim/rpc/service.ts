// `criu swrk FD`: one client, one socket, requests until the work is done.
// What is not built is answered as a failure with a sentence, not by silence.
import { criu_req_type } from '../../oci-spec/images/messages.js';
import { LogFile } from '../core-session.js';
import { defaultCriuConfiguration, readCriuConfiguration } from '../criu-configuration.js';
import { StasisError } from '../errors/index.js';
import { checkHost } from '../host-check.js';
import { dump } from './dump.js';
import { BadRequest, directoriesOf, type RpcDirectories } from './options.js';
import { RpcSocket, type Notify, type RpcOptions, type RpcRequest, type RpcResponse } from './packets.js';
import { restore } from './restore.js';

const ESRCH = 3;
const EEXIST = 17;
const EBADRQC = 56;
const ENOTSUP = 95;
/** Clients read answers into 8 KiB. */
const kMessageBytes = 1023;
const kFailedPid = -1;

/** The version of CRIU whose protocol this is. */
export const criuVersion = { major: 4, minor: 2 } as const;

/** Requests after which a client may keep the socket for the next one, as in CRIU. */
const mayStayOpen: ReadonlySet<number> = new Set([criu_req_type.VERSION, criu_req_type.FEATURE_CHECK]);

/** Returns the exit status: clients take another one than 0 for a failure of the call. */
export async function serve(ownFd: number): Promise<number> {
  const socket = new RpcSocket(ownFd);
  for (let answered = false; ; answered = true) {
    const request = socket.receive();
    // A client that was answered and wants no more closes its end: runc does so after a pre-dump.
    if (request === undefined) return answered ? 0 : 1;
    const response = await answer(request, socket);
    socket.send(response);
    if (response.success !== true) return 1;
    if (!expectsMore(request)) return 0;
  }
}

/** Rounds of pre-dumps go over one socket, up to the dump itself. */
function expectsMore({ type, keep_open }: RpcRequest): boolean {
  return type === criu_req_type.PRE_DUMP || (keep_open === true && mayStayOpen.has(type));
}

async function answer(request: RpcRequest, socket: RpcSocket): Promise<RpcResponse> {
  const { type } = request;
  switch (type) {
    case criu_req_type.VERSION:
      return { type, success: true, version: { major_number: criuVersion.major, minor_number: criuVersion.minor } };
    case criu_req_type.FEATURE_CHECK:
      return { type, success: true, features: features(request) };
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
    case criu_req_type.WAIT_PID:
      return failure(type, new BadRequest('cannot wait for a page server: serving pages is not built yet'));
    case criu_req_type.CPUINFO_DUMP:
    case criu_req_type.CPUINFO_CHECK:
      return {
        ...failure(type, new BadRequest('cannot tell or compare processors: a restore checks what its images need')),
        cr_errno: ENOTSUP,
      };
    default:
      return failure(criu_req_type.EMPTY, new BadRequest(`Invalid req: there is no request of type ${type}`));
  }
}

/** Each one is answered; none is there that was not asked for. */
function features({ features: asked }: RpcRequest): RpcResponse['features'] {
  return { mem_track: asked?.mem_track === true, lazy_pages: false, pidfd_store: false };
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
    return { type, success: true, ...(await act(configured(opts), directories, notify)) };
  } catch (error) {
    const response = failure(type, error);
    if (directories !== undefined) writeToLog(directories, response.cr_errmsg ?? '');
    return response;
  }
}

/** What is said in the request counts more than the files that are read always, and less than the one that it names. */
function configured(options: RpcOptions): RpcOptions {
  const said = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as RpcOptions;
  return { ...defaultCriuConfiguration(process.env), ...said, ...readCriuConfiguration(options.config_file ?? '') };
}

function failure(type: number, error: unknown): RpcResponse {
  const sentence = error instanceof Error ? error.message : String(error);
  const errno = errnoOf(error);
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

/** 0: none that clients know. */
function errnoOf(error: unknown): number {
  if (!(error instanceof StasisError)) return 0;
  switch (error.code) {
    case 'OPTION_NOT_BUILT':
      return EBADRQC;
    case 'TASK_GONE':
      return ESRCH;
    case 'PID_TAKEN':
      return EEXIST;
    default:
      return 0;
  }
}

/** Runtimes quote the lines of the log that have this word: runc with anything after it, crun with a space. */
function writeToLog(directories: RpcDirectories, sentence: string): void {
  try {
    using log = new LogFile(directories.workPath, directories.logName);
    log.write([`Error (stasis): ${sentence}`]);
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
