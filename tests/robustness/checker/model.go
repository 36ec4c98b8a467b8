package main

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// An input is what a client asked of one concept.
type input struct {
	Kind       string
	Version    int
	Etag       string
	CreateOnly bool
}

// An output is what it was answered: result is OK, the reason of a refusal, or UNKNOWN.
type output struct {
	Result  string
	State   string
	Count   int
	Version int
	Etag    string
	By      string
}

// A concept is the state of one partition. Version is what the alias points at, 0 where there is none. The etag of a
// move whose answer nobody has heard is not known: Etag is then anyEtag, until somebody reads it.
type concept struct {
	State   string
	Count   int
	Version int
	Etag    string
}

const (
	ok      = "OK"
	unknown = "UNKNOWN"
	absent  = "absent"
	active  = "active"
	deleted = "deleted"
	anyEtag = "?"
)

var model = porcupine.Model{
	Init: func() interface{} { return concept{State: absent} },
	Step: func(state, in, out interface{}) (bool, interface{}) {
		return step(state.(concept), in.(input), out.(output))
	},
	DescribeOperation: func(in, out interface{}) string { return describe(in.(input), out.(output)) },
	DescribeState:     func(state interface{}) string { return fmt.Sprintf("%+v", state) },
}

// Whether the registry may answer so in this state, and the state that follows. An operation without a known outcome
// returns at the end of time, so that one which was never done is done after everything else.
func step(now concept, in input, out output) (bool, concept) {
	switch in.Kind {
	case "get":
		if now.State == absent {
			return out.Result == "CONCEPT_NOT_FOUND", now
		}
		same := out.State == now.State && out.Count == now.Count && out.Version == now.Version
		return out.Result == ok && same, now
	case "alias":
		if now.Version == 0 {
			return out.Result == "ALIAS_NOT_FOUND", now
		}
		if out.Result != ok || out.Version != now.Version || !matches(now.Etag, out.Etag) {
			return false, now
		}
		now.Etag = out.Etag
		return true, now
	case "resolve":
		return resolve(now, out), now
	}
	refusal, next := change(now, in, out)
	if out.Result == unknown {
		return true, next
	}
	if out.Result != refusal {
		return false, now
	}
	if refusal != ok {
		return true, now
	}
	switch in.Kind {
	case "publish":
		return out.Version == next.Count, next
	case "set":
		next.Etag = out.Etag
		return out.Version == next.Version, next
	case "unset":
		return true, next
	}
	return out.State == next.State && out.Count == next.Count && out.Version == next.Version, next
}

// What a change is answered in this state, and the state after it; where it is refused, that is the same. Whether an
// etag that is not known matches is told by the answer.
func change(now concept, in input, out output) (string, concept) {
	next := now
	switch {
	case in.Kind == "publish":
		if now.State == deleted {
			return "CONCEPT_DELETED", now
		}
		next.State, next.Count = active, now.Count+1
		return ok, next
	case now.State == absent:
		return "CONCEPT_NOT_FOUND", now
	case in.Kind == "undelete":
		if now.State == active {
			return "CONCEPT_ACTIVE", now
		}
		next.State = active
		return ok, next
	case now.State == deleted:
		return "CONCEPT_DELETED", now
	case in.Kind == "delete":
		next.State = deleted
		return ok, next
	case in.Kind == "set" && in.CreateOnly && now.Version != 0:
		return "ALIAS_EXISTS", now
	case in.Kind == "unset" && now.Version == 0:
		return "ALIAS_NOT_FOUND", now
	}
	if in.Etag != "" {
		mismatch := now.Version == 0 || !matches(now.Etag, in.Etag)
		if mismatch || now.Etag == anyEtag && out.Result == "ETAG_MISMATCH" {
			return "ETAG_MISMATCH", now
		}
	}
	if in.Kind == "unset" {
		next.Version, next.Etag = 0, ""
		return ok, next
	}
	if in.Version > now.Count {
		return "VERSION_NOT_FOUND", now
	}
	next.Version, next.Etag = in.Version, anyEtag
	return ok, next
}

func resolve(now concept, out output) bool {
	switch {
	case now.State == absent:
		return out.Result == "WORD_NOT_FOUND"
	case now.State == deleted:
		return out.Result == "WORD_DELETED"
	case now.Version != 0:
		return out.Result == ok && out.Version == now.Version && out.By == "production"
	}
	return out.Result == ok && out.Version == now.Count && out.By == "latest"
}

func matches(etag, given string) bool {
	return etag == anyEtag || etag == given
}

func describe(in input, out output) string {
	asked := in.Kind
	if in.Kind == "set" {
		asked = fmt.Sprintf("set %d", in.Version)
		if in.CreateOnly {
			asked += " if absent"
		}
	}
	if in.Etag != "" {
		asked += " if " + in.Etag[20:]
	}
	if out.Result != ok {
		return fmt.Sprintf("%s: %s", asked, out.Result)
	}
	told := out.State
	if out.Count != 0 {
		told += fmt.Sprintf(" count %d", out.Count)
	}
	told += fmt.Sprintf(" version %d %s", out.Version, out.By)
	if out.Etag != "" {
		told += " at " + out.Etag[20:]
	}
	return fmt.Sprintf("%s: %s", asked, told)
}
