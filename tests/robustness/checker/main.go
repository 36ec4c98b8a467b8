// Checker reads a history of a registry and says for each concept whether it is linearizable.
//
//	checker [-timeout 60s] HISTORY.json FOLDER
//
// A concept whose history is not, or of which that could not be found out in time, is drawn into FOLDER. Exit status 0:
// all are; 1: one is not; 2: one is not known to be, or there is no history to read.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

type operation struct {
	Client  int    `json:"client"`
	Concept string `json:"concept"`
	Kind    string `json:"kind"`
	Call    int64  `json:"call"`
	End     int64  `json:"end"`
	Result  string `json:"result"`
	Stale   bool   `json:"stale"`
	Input   struct {
		Version    int    `json:"version"`
		Etag       string `json:"etag"`
		CreateOnly bool   `json:"create_only"`
	} `json:"input"`
	Output struct {
		State   string `json:"state"`
		Count   int    `json:"count"`
		Version int    `json:"version"`
		Etag    string `json:"etag"`
		By      string `json:"by"`
	} `json:"output"`
}

type history struct {
	Operations []operation `json:"operations"`
}

func main() {
	timeout := flag.Duration("timeout", time.Minute, "for each concept")
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	partitions, err := read(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(check(partitions, *timeout, flag.Arg(1)))
}

func check(partitions map[string][]porcupine.Operation, timeout time.Duration, folder string) int {
	status := 0
	var names []string
	for name := range partitions {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		result, info := porcupine.CheckOperationsVerbose(model, partitions[name], timeout)
		if result == porcupine.Ok {
			continue
		}
		path := filepath.Join(folder, strings.ReplaceAll(name, "/", "-")+".html")
		if err := porcupine.VisualizePath(model, info, path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		if result == porcupine.Illegal {
			fmt.Printf("%s is not linearizable: %s\n", name, path)
			status = 1
		} else {
			fmt.Printf("%s could not be checked in %s: %s\n", name, timeout, path)
			if status == 0 {
				status = 2
			}
		}
	}
	fmt.Printf("%d concepts\n", len(names))
	return status
}

// The operations of each concept. What was certainly not done is left out, and so is what was allowed to be old.
func read(path string) (map[string][]porcupine.Operation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var found history
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, err
	}
	partitions := map[string][]porcupine.Operation{}
	for _, one := range found.Operations {
		if one.Result == "NOTHING" || one.Stale {
			continue
		}
		end := one.End
		if one.Result == unknown {
			end = math.MaxInt64
		}
		in := input{Kind: one.Kind, Version: one.Input.Version, Etag: one.Input.Etag, CreateOnly: one.Input.CreateOnly}
		out := output{Result: one.Result, State: one.Output.State, Count: one.Output.Count}
		out.Version, out.Etag, out.By = one.Output.Version, one.Output.Etag, one.Output.By
		partitions[one.Concept] = append(partitions[one.Concept], porcupine.Operation{
			ClientId: one.Client, Input: in, Call: one.Call, Output: out, Return: end,
		})
	}
	return partitions, nil
}
