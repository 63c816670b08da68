import { startProgram } from '../start-program.js';
import { main } from './main.js';
import { rehearseProcess } from './rehearsal.js';

startProgram(main, rehearseProcess);
