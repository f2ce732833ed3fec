// A program whose runtime sends it signals without end (SIGURG, to preempt), while it
// makes calls that are notified. Each must fail with EXDEV. The argument says how many
// calls each of its goroutines makes of each kind.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const callers = 4

func main() {
	calls, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	runtime.GOMAXPROCS(2 * callers)
	for spinner := 0; spinner < 2; spinner++ {
		go func() {
			for turn := 0; ; turn++ {
			}
		}()
	}
	path, err := syscall.BytePtrFromString("/tmp/d")
	if err != nil {
		panic(err)
	}
	here := -100 // AT_FDCWD
	var made, wrong atomic.Int64
	check := func(errno error) {
		made.Add(1)
		if errno != syscall.EXDEV {
			wrong.Add(1)
		}
	}
	var group sync.WaitGroup
	for caller := 0; caller < callers; caller++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for call := 0; call < calls; call++ {
				check(syscall.Mkdir("/tmp/d", 0o700))
				// The runtime does not know that this is a call: it takes the thread for one that
				// computes, and sends it a signal every 10 ms.
				_, _, errno := syscall.RawSyscall(syscall.SYS_MKDIRAT, uintptr(here), uintptr(unsafe.Pointer(path)), 0o700)
				check(errno)
			}
		}()
	}
	group.Wait()
	fmt.Printf("%d calls, %d wrong\n", made.Load(), wrong.Load())
}
