// Command learn learns a word from pictures and draws it:
//
//	go run ./examples/learn -word rex -start dog -o rex.png 1.png 2.png 3.png 4.png
//
// Start the servers with `pseudoword up` before.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	pseudoword "github.com/pseudoword/pseudoword/clients/go"
	trainerv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/trainer/v1"
)

func main() {
	log.SetFlags(0)
	word := flag.String("word", "rex", "the word to learn")
	start := flag.String("start", "", "a word of the vocabulary to start from (default: the server's)")
	prompt := flag.String("sentence", "", "the prompt to draw (default: a photo of <WORD> on the beach)")
	output := flag.String("o", "out.png", "the file to write the picture to")
	flag.Parse()
	if flag.NArg() == 0 {
		log.Fatal("no pictures: give the files to learn from as arguments")
	}
	if *prompt == "" {
		*prompt = fmt.Sprintf("a photo of <%s> on the beach", *word)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *word, *start, *prompt, *output, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, word, start, prompt, output string, files []string) error {
	client, err := pseudoword.New(pseudoword.Options{})
	if err != nil {
		return err
	}
	defer client.Close()

	var pictures [][]byte
	for _, file := range files {
		picture, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		pictures = append(pictures, picture)
	}
	version, err := client.Learn(ctx, word, pictures, pseudoword.LearnOptions{
		Start: start,
		OnEvent: func(event *trainerv1.JobEvent) {
			if progress := event.GetProgress(); progress != nil {
				fmt.Printf("\rstep %d of %d, loss %.4f", progress.GetStep(), progress.GetSteps(), progress.GetSmoothedLoss())
			}
		},
	})
	if err != nil {
		return err
	}
	fmt.Printf("\nlearned %s\n", version.GetName())

	drawn, err := client.Draw(ctx, prompt, pseudoword.DrawOptions{Exact: true})
	if err != nil {
		return err
	}
	fmt.Printf("drew %q: %s\n", prompt, output)
	return os.WriteFile(output, drawn[0].Data, 0o644)
}
