// Prints, for every pod of a node, what was decided about its containers' calls.
//
//	trace /run/podinit/plugins.d/trace.sock
//
// It listens, and every pod's monitor connects to it.
package main

import (
	"fmt"
	"os"

	plugins "podinit.example/plugins"
	"podinit.example/plugins/plugin"
)

type trace struct{}

func (trace) Observe(pod string, records plugin.Record_List, lost uint64) error {
	for i := range records.Len() {
		record := records.At(i)
		notification, err := record.Notification()
		if err != nil {
			return err
		}
		verdict, err := record.Verdict()
		if err != nil {
			return err
		}
		container, _ := notification.Container()
		name, _ := notification.Name()
		by, _ := record.DecidedBy()
		fmt.Println(pod, container, name, verdict.Which(), by, record.LatencyUs())
	}
	if lost > 0 {
		fmt.Fprintln(os.Stderr, lost, "records were lost")
	}
	return nil
}

func main() {
	request := func(request plugin.RegistrationRequest) error {
		request.SetKind(plugin.RegistrationRequest_Kind_observer)
		return request.SetName("trace-go")
	}
	plugins.End(plugins.Listen(plugins.Arguments("trace SOCKET")[0], request, func() *plugins.Served {
		return &plugins.Served{Observer: trace{}}
	}))
}
